"""A configuration of ReFrame for one machine without a queue: MPI jobs are started by mpirun."""

site_configuration = {
    "systems": [
        {
            "name": "local",
            "hostnames": [".*"],
            "partitions": [
                {"name": "default", "scheduler": "local", "launcher": "mpirun", "environs": ["plain"]},
            ],
        }
    ],
    "environments": [{"name": "plain", "target_systems": ["local"]}],
}
