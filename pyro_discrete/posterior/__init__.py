"""What a trained pair says: marginals and most probable values, draws and predictions, the way into ArviZ."""
