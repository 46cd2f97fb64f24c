"""``tritonize tune``: which way of serving a model is the best here."""
