// Light or dark, set before anything is painted: a classic script in the head, so that nothing flashes.
// "auto" follows the system, also when that changes later.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => {
    try {
      return localStorage.getItem("moleflow.theme") || "auto";
    } catch {
      return "auto"; // storage may be forbidden
    }
  };
  let chosen = kept();
  const paint = () => {
    const theme = chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
    document.documentElement.dataset.theme = theme;
  };
  dark.addEventListener("change", paint);
  window.moleflowTheme = {
    get chosen() {
      return chosen;
    },
    choose(theme) {
      chosen = theme;
      try {
        localStorage.setItem("moleflow.theme", theme);
      } catch {
        // It holds until the page is closed.
      }
      paint();
    },
  };
  paint();
})();
