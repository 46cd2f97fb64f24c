"""The stage behind ``tritonize tune``: searches the best way to serve a model on this machine."""
