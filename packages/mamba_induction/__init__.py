"""How a state-space model copies: recognition, prediction, and the gap between them."""
