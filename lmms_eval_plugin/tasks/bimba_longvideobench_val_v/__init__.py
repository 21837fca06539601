"""LongVideoBench's validation set without subtitles, asked as for the published 59.46."""
