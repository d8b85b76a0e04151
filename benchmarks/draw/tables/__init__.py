"""Write the tables of the documentation as Markdown: one module for each kind, their records, and the page writer."""
