"""The API under load: many open streams, and many submissions a second."""
