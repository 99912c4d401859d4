"""A page as HTML, Markdown, SVG, or text on a terminal."""
