"""The local viewer: a page on this machine that shows the findings of a run and keeps verdicts.

`folder` reads what a run wrote, `volumes` hands it to the page, `readings` keeps what readers say,
`app` is the server. The page itself is built from ``web/`` into ``page/``.
"""
