"""Labels by construction: a reference's own boxes where its picture was moved, and objects pasted into it."""
