"""All that speaks MPI: roles and failures (`world`), arrays shared by a node (`shared`), pinning (`devices`)."""
