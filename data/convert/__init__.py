"""Converting: tables into shards (pack), and small public sets into the tasks that they can serve, one file a set."""
