"""Starting, reaching and quieting Ray: the only place for its private names."""
