"""The gateway's endpoints: inference, the catalogue of what is served, and the plain ones."""
