"""Report: tables, charts, pages and files of what experiments found."""
