"""Visual inspection that learns a new product every week and forgets none."""
