"""Tables as they are shown: as HTML, and with alike names in one line."""
