"""What mkdocs needs to make a site of the documents (`./dev docs`); not part of the wheel."""
