"""Writing the plan into the graph: Q/DQ nodes, a 16-bit body, and the check of what was written."""
