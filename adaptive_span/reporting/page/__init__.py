"""What did the heads learn, on one page that opens without a network?

`chosen` finds runs and names them, `charts` thins what is drawn, `tables` words what is read, `build` puts them into
`template.html.j2` with `style.css`, `script.js` and one copy of plotly.js.
"""
