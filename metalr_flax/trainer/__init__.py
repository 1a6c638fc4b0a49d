"""From a config to objects, and the loop on the host that trains them."""
