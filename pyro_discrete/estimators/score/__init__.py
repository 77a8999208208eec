"""Score-function estimators: log q times a cost less a baseline, on the bound of several particles too."""
