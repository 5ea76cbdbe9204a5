"""Makes a release, an OCI image layout with signatures and bills of materials, and checks one."""
