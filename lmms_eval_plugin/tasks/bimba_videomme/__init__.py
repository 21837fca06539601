"""Video-MME without subtitles, asked as for the published 64.67."""
