"""Do induction heads sit at a stable relative depth across model sizes?"""
