"""What people see of an archive on one page: HTML report, charts, tile images, contact sheets."""
