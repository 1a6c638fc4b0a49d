"""Methods side by side on the same problems, and how they rank."""
