"""What a check found, as records and as JSON, JUnit, Markdown and a page."""
