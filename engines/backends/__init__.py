"""What executes a bundle's graphs: the engines by name (`registry`), and a module or folder for each."""
