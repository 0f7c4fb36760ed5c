"""Write a plan into the graph."""
