"""The networks, their parts, and the artifact that holds a trained one."""
