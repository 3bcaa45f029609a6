"""A page on this machine that shows what the unit under the pointer sees; all but `page` knows nothing of servers."""
