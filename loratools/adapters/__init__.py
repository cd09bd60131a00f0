"""The intermediate representation and the algebra: what an adapter is and what can be done to it."""
