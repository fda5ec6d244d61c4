"""Pages that people look at: one offline HTML file each."""
