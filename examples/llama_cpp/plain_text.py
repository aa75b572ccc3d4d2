# SPDX-License-Identifier: MIT
"""The paragraphs of a folder of HTML pages as one text file: plain_text.py FOLDER FILE"""
import glob
import html.parser
import os
import re
import sys

BREAKS = {"p", "div", "h1", "h2", "h3", "h4", "li", "pre", "tr", "dt", "dd"}
SILENT = {"script", "style", "head"}


class Paragraphs(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.all, self.current, self.silent = [], [], 0

    def end(self):
        text = re.sub(r"\s+", " ", "".join(self.current)).strip()
        self.current = []
        if len(text) > 80 and re.search(r"[.!?]", text):
            self.all.append(text)

    def handle_starttag(self, tag, attributes):
        self.silent += tag in SILENT
        if tag in BREAKS:
            self.end()

    def handle_endtag(self, tag):
        self.silent -= tag in SILENT
        if tag in BREAKS:
            self.end()

    def handle_data(self, data):
        if not self.silent:
            self.current.append(data)


pages = sorted(p for p in glob.glob(os.path.join(sys.argv[1], "*.html")) if os.path.basename(p) not in ("index.html", "ix01.html"))
if not pages:
    sys.exit(f"{sys.argv[1]}: there are no pages")
reader = Paragraphs()
for page in pages:
    with open(page, encoding="utf-8") as file:
        reader.feed(file.read())
    reader.end()
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write("\n\n".join(reader.all) + "\n")
