"""How the weights of the zoo are made and measured."""
