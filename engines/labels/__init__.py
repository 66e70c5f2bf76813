"""When a box is a label: boxes, scores, the rules of a dataset, and how good labels are against annotations."""
