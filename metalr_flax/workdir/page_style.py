"""The style sheet and the script of a page: small, and part of the page."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59626d;
  --ground: #fafbfc; --card: #fff; --line: #d8dee4; --accent: #0a5cc2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ee; --soft: #9aa5b1;
  --ground: #0e1116; --card: #161b22; --line: #30363d; --accent: #6cb0ff; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 .25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
a { color: var(--accent); }
.soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
section { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 1rem; margin: 1rem 0; }
.wide { overflow-x: auto; margin: .5rem 0; }
.numbers { display: grid; gap: .75rem; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.numbers dt { color: var(--soft); font-size: .875rem; }
.numbers dd { margin: 0; font-size: 1.4rem;
  font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-size: .875rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; font-weight: 600; }
td.number { text-align: right; white-space: nowrap; }
th.number { text-align: right; }
td { max-width: 28rem; overflow-wrap: break-word; }
td:last-child:not(.number) { min-width: 9rem; }
.sorts th { cursor: pointer; }
.sorts th:hover, .sorts th:focus-visible { color: var(--accent); }
.sorts th::after { content: "\\a0\\2195";
  color: var(--soft); font-weight: 400; }
.sorts th[aria-sort=ascending]::after { content: "\\a0\\2191"; }
.sorts th[aria-sort=descending]::after { content: "\\a0\\2193"; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
svg text { fill: var(--ink); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
pre { margin: 0; padding: .75rem; overflow-x: auto; font-size: .8125rem;
  background: var(--ground); border: 1px solid var(--line);
  border-radius: 6px; overflow-wrap: normal; }
button { font: inherit; font-size: .875rem; padding: .25rem .75rem;
  margin: .5rem 0; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; cursor: pointer; }
button:hover { border-color: var(--accent); }
summary { cursor: pointer; margin: .5rem 0; color: var(--accent); }
@media (max-width: 30rem) { body { padding: .5rem; }
  section { padding: .75rem .5rem; } }
@media print { section { break-inside: avoid; } }
"""

# A click on a column's head sorts by it, another turns the order; a page's
# address that ends with #sort=<table>.<column> is shown so.
SCRIPT = """
'use strict';
const value = cell => {
  const known = cell.dataset.value;
  return known === undefined ? cell.textContent.trim() : Number(known);
};
const compare = (a, b) => typeof a === 'number' && typeof b === 'number'
  ? a - b : String(a).localeCompare(String(b), 'en', {numeric: true});
const sort = (table, column) => {
  const heads = [...table.tHead.rows[0].cells];
  const head = heads[column];
  if (!head) return;
  const down = head.ariaSort === 'ascending';
  heads.forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const body = table.tBodies[0];
  const blank = row => row.cells[column].textContent.trim() === '-';
  const rows = [...body.rows].sort((a, b) => blank(a) - blank(b)
    || (down ? -1 : 1)
      * compare(value(a.cells[column]), value(b.cells[column])));
  body.append(...rows);
};
for (const table of document.querySelectorAll('table.sortable')) {
  table.classList.add('sorts');
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener('click', () => sort(table, column));
    head.addEventListener('keydown', event => {
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        sort(table, column);
      }
    });
  });
}
const asked = /^#sort=(.+)\\.(\\d+)$/.exec(decodeURIComponent(location.hash));
const chosen = asked && document.getElementById(asked[1]);
if (chosen) sort(chosen, Number(asked[2]));
for (const button of document.querySelectorAll('button.copy')) {
  button.hidden = false;
  const text = button.previousElementSibling;
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      getSelection().selectAllChildren(text);
      document.execCommand('copy');
    }
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
}
"""
