"""The Hessian's spectrum while induction heads form in an abrupt phase transition."""
