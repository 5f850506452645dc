// Times in the words and the zone of the reader: relative, exact on hover. The server writes UTC, which stands without
// this script. One timer serves all.
import {t} from "./text.js";

const lang = document.documentElement.lang;
const relative = new Intl.RelativeTimeFormat(lang, {style: 'narrow', numeric: 'always'});
const exact = new Intl.DateTimeFormat(lang, {dateStyle: 'full', timeStyle: 'long'});
const moment = new Intl.DateTimeFormat(lang, {dateStyle: 'medium', timeStyle: 'medium'});

const units = [['year', 31557600], ['day', 86400], ['hour', 3600], ['minute', 60]];

function ago(seconds) {
  const size = Math.abs(seconds);
  for (const [unit, length] of units) {
    if (size >= length * (unit === 'day' ? 2 : 1)) return relative.format(-Math.trunc(seconds / length), unit);
  }
  return size < 5 ? t('now') : relative.format(-Math.trunc(seconds / 5) * 5, 'second');
}

// age as kubectl writes it.
function age(seconds) {
  const s = Math.max(0, seconds);
  if (s < 60) return `${Math.trunc(s / 5) * 5}s`;
  if (s < 3600) return `${Math.trunc(s / 60)}m`;
  if (s < 2 * 86400) return `${Math.trunc(s / 3600)}h`;
  if (s < 2 * 31557600) return `${Math.trunc(s / 86400)}d`;
  return `${Math.trunc(s / 31557600)}y`;
}

let timer = 0;

function tell(el, now) {
  const at = Date.parse(el.dateTime);
  if (Number.isNaN(at)) return Infinity;
  const seconds = (now - at) / 1000;
  const text = el.dataset.t === 'at' ? moment.format(at) : el.dataset.t === 'age' ? age(seconds) : ago(seconds);
  if (el.textContent !== text) el.textContent = text;
  return el.dataset.t === 'at' ? Infinity : Math.abs(seconds);
}

function tick() {
  clearTimeout(timer);
  const now = Date.now();
  let youngest = Infinity;
  for (const el of document.querySelectorAll('time[datetime]')) youngest = Math.min(youngest, tell(el, now));
  timer = setTimeout(tick, youngest < 60 ? 5000 : 30000);
}

// What comes in or changes is told at once, before it is painted.
new MutationObserver(records => {
  const now = Date.now();
  for (const r of records) {
    if (r.type === 'attributes') {
      tell(r.target, now);
      continue;
    }
    for (const node of r.addedNodes) {
      if (node.nodeType !== Node.ELEMENT_NODE) continue;
      if (node.matches('time[datetime]')) tell(node, now);
      for (const el of node.querySelectorAll('time[datetime]')) tell(el, now);
    }
  }
}).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['datetime']});

function explain(e) {
  const el = e.target.closest?.('time[datetime]');
  if (el) el.title = exact.format(Date.parse(el.dateTime));
}
document.addEventListener('pointerover', explain, {passive: true});
document.addEventListener('visibilitychange', () => { if (!document.hidden) tick(); });
tick();
