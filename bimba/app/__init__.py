"""``bimba app``: a page in the browser for a person with a video and a question.

::

    server.py    one process: the page, its temporary files, what the browser may load
    page.py      what is on the page, and what happens when something on it is used
    reading.py   a video just dropped: first frames, all frames, tokens, the selection map
    asking.py    a question about it, of every model, word by word
    sessions.py  who has which video open, and when its file goes
    models.py    the models, and the one thread in which they work
    drawing.py   all of it as HTML, from templates/
"""
