"""The look of a report."""

CSS = """
:root { color-scheme: light; --ink: #1f2933; --muted: #66727f; --line: #e3e7eb; --paper: #f6f7f9;
  --good: #2a9078; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 44px 0 4px; letter-spacing: -0.01em; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 0; }
.lead { color: var(--muted); max-width: 46em; }
.facts { color: var(--muted); font-size: 14px; margin-top: 10px; }
.facts span { white-space: nowrap; }
.facts span + span::before { content: "·"; margin: 0 8px; color: #b8c0c8; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px;
  margin: 26px 0 0; }
.tile, .card { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: 18px 20px;
  min-width: 0; }
.tile { border-top: 4px solid var(--accent); }
.tile b { display: block; font-size: 30px; line-height: 1.2; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tile .what { font-size: 14px; font-weight: 600; }
.tile .note { font-size: 13.5px; color: var(--muted); line-height: 1.4; margin-top: 4px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px;
  margin-top: 16px; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: 14px; line-height: 1.45; margin-top: 8px; }
.scroll { overflow-x: auto; margin-top: 16px; padding: 6px 8px; }
.scroll h3 { margin: 10px 10px 4px; }
.grid .scroll { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 10px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { font-size: 13px; font-weight: 600; color: var(--muted); vertical-align: bottom;
  line-height: 1.3; }
thead .group { border-bottom: 0; padding-bottom: 0; color: var(--ink); text-align: center;
  font-size: 14px; }
tbody tr:last-child td { border-bottom: 0; }
tr.ours td { background: #eef6f3; font-weight: 600; }
tr.first-run td { border-top: 2px solid #cfd6dc; }
td .ci { display: block; font-size: 12px; line-height: 1.3; font-weight: 400; color: var(--muted);
  white-space: nowrap; }
td.best b { color: var(--good); }
td b { font-weight: inherit; }
td.best b { font-weight: 700; }
td.better b { color: var(--good); font-weight: 700; }
td.worse b { color: #c2413b; font-weight: 700; }
.footnote { color: var(--muted); font-size: 14px; margin-top: 10px; max-width: 60em; }
.example .label { font-size: 12px; font-weight: 600; letter-spacing: .04em; text-transform: uppercase;
  color: var(--muted);
  margin: 12px 0 4px; }
.badge { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 13px; font-weight: 600;
  color: #fff;
  background: var(--accent); margin-right: 8px; }
.verdict { font-size: 13.5px; color: var(--muted); }
.history { list-style: none; margin: 0; padding: 0; font-size: 14px; }
.history li { padding: 2px 0 2px 14px; border-left: 2px solid var(--line); overflow-wrap: anywhere; }
.query { display: inline-block; background: #fdf3ea; border: 1px solid #f3d9bf; border-radius: 8px;
  padding: 3px 12px;
  font-size: 15px; overflow-wrap: anywhere; }
.top { margin: 0; padding: 0; list-style: none; font-size: 14px; counter-reset: rank; }
.top li { display: flex; gap: 10px; padding: 4px 8px; border-radius: 8px; counter-increment: rank; }
.top li::before { content: counter(rank); color: var(--muted); min-width: 1em;
  font-variant-numeric: tabular-nums; }
.top .title { flex: 1; overflow-wrap: anywhere; }
.top .score { color: var(--muted); font-variant-numeric: tabular-nums; }
.top li.hit { background: #e6f3ef; font-weight: 600; }
.top li.hit .title::after { content: " ✓"; color: var(--good); }
.missed { font-size: 14px; margin-top: 8px; padding: 4px 8px; border-radius: 8px; background: #f7f2ea;
  overflow-wrap: anywhere; }
.empty { color: var(--muted); margin-top: 12px; }
@media (max-width: 600px) {
  main { padding: 22px 14px 48px; }
  h1 { font-size: 25px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tile, .card { padding: 13px 13px; border-radius: 12px; }
  .tile b { font-size: 24px; }
  .scroll { padding: 4px 2px; }
  th, td { padding: 8px 5px; font-size: 13px; }
  thead th { font-size: 11.5px; } thead .group { font-size: 12px; }
  td .ci { display: none; }
}
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""
