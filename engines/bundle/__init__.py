"""A bundle: its files and manifest, the specs of its graphs, and the parts of them that stay in float32."""
