"""The methods by their names on the command line."""
