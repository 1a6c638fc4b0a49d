"""The maths, pure: updates, tangents, the meta-gradient, the outer step."""
