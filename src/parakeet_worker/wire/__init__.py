"""Wire formats: a JSON document or a form to a `Request`, and errors that name its fields."""
