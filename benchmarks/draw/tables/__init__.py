"""Tables of the documentation, as Markdown: a module for each kind, the records that they read, and the page writer."""
