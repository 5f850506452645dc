// What htmx's stream lacks: a first connect that fails is tried again, a stream that went silent is dropped and resumed,
// and a refusal ends it with a way to sign in. Beside that: the indicator, the order of rows, and the marks on what
// has just changed.
import {t, count, clock} from "./text.js";

const silence = 45_000; // the server says something every 20 s

// follow guards one streaming element; say is told how it goes.
export function follow(el, say = () => {}) {
  let attempt = 0, conn = null, seen = Date.now(), changed = Date.now(), over = false, waiting = 0;

  const again = retryAfter => {
    if (over || waiting || el._htmx?.sse) return;
    say('reconnecting', changed);
    const wait = Math.max(retryAfter * 1000 || 0, Math.random() * Math.min(500 * 2 ** attempt++, 30_000));
    waiting = setTimeout(() => {
      waiting = 0;
      // A hidden tab needs no stream; it asks again when somebody looks.
      if (document.hidden) document.addEventListener('visibilitychange', () => again(0), {once: true});
      else htmx.trigger(el, 'live-retry');
    }, wait);
  };
  const end = why => {
    over = true;
    if (conn) {
      conn.config.reconnectMaxAttempts = 0;
      conn.reader?.cancel();
    }
    say(why, changed);
  };
  const refused = status => {
    if (status !== 401 && status !== 403) return false;
    end(status === 401 ? 'signedout' : 'forbidden');
    return true;
  };
  const mine = handler => e => { if (e.target === el) handler(e.detail ?? {}); };

  el.addEventListener('htmx:response:error', mine(d => {
    refused(d.ctx.response.status) || again(Number(d.ctx.response.headers.get('Retry-After')));
  }));
  el.addEventListener('htmx:error', mine(() => again(0)));
  el.addEventListener('htmx:sse:before:connection', mine(() => { if (conn && !over && !document.hidden) say('reconnecting', changed); }));
  el.addEventListener('htmx:sse:after:connection', mine(d => {
    attempt = 0;
    conn = d.connection;
    seen = Date.now();
    say('live', changed);
  }));
  el.addEventListener('htmx:sse:error', mine(d => { if (d.status) refused(d.status); }));
  el.addEventListener('htmx:sse:after:message', mine(d => {
    seen = Date.now();
    if (!d.message.event) {
      if (d.message.data.startsWith('<hx-partial hx-target="#rows" hx-swap="innerMorph"')) forgetOrder();
      changed = seen;
      say('changed', changed);
    }
  }));
  el.addEventListener('htmx:sse:close', mine(d => { if (d.reason === 'ended') again(0); }));
  el.addEventListener('bye', mine(d => end(d.data === 'cluster-gone' ? 'ended' : 'signedout')));
  el.addEventListener('done', mine(() => end('ended')));
  el.addEventListener('reload', mine(() => say('newbuild', changed)));

  const watchdog = setInterval(() => {
    if (over || !el.isConnected) clearInterval(watchdog);
    else if (!document.hidden && conn?.reader && Date.now() - seen > silence) {
      seen = Date.now(); // one chance per silence
      say('stale', changed);
      conn.reader.cancel();
    }
  }, 5000);
}

// ---- the indicator -------------------------------------------------------------------------------------------------

const light = document.getElementById('live-state');

function indicate(state, changed) {
  if (!light) return;
  const text = {
    connecting: () => t('connecting'),
    live: () => t('live'),
    reconnecting: () => t('reconnecting', {time: clock(changed)}),
    stale: () => t('stale', {time: clock(changed)}),
    signedout: () => t('stale', {time: clock(changed)}),
    forbidden: () => t('stale', {time: clock(changed)}),
    ended: () => t('ended'),
  }[state]?.();
  if (!text) return;
  light.dataset.uiState = state;
  const words = light.querySelector('[data-text]');
  if (words.textContent !== text) words.textContent = text;
}

// A bar stays until it is acted on. The address to come back to is this page's own.
function bar(text, label, href) {
  document.getElementById('live-bar')?.remove();
  const box = document.createElement('div');
  box.id = 'live-bar';
  box.className = 'notice strong';
  box.setAttribute('role', 'alert');
  const words = document.createElement('span');
  words.textContent = text + ' ';
  const link = document.createElement('a');
  link.className = 'button small';
  link.textContent = label;
  link.href = href;
  box.append(words, link);
  document.getElementById('main').prepend(box);
}

const here = () => location.pathname + location.search;

function say(state, changed) {
  switch (state) {
    case 'changed':
      settle();
      return;
    case 'signedout':
      bar(t('signedout', {time: clock(changed)}), t('signin'), '/login?next=' + encodeURIComponent(here()));
      break;
    case 'forbidden':
      bar(t('forbidden', {time: clock(changed)}), t('signin'), '/login?next=' + encodeURIComponent(here()));
      break;
    case 'newbuild':
      bar(t('newbuild'), t('reload'), here());
      return;
  }
  indicate(state, changed);
}

// ---- what follows a change -----------------------------------------------------------------------------------------

const detail = document.getElementById('detail');

// The detail of a node is taken from its whole page. The page's scripts run already, and htmx would try to make them
// again, which the policy forbids. An answer without a detail (the node is gone, the session has ended) leaves what was
// last known.
detail?.addEventListener('htmx:after:request', e => {
  if (e.target !== detail) return;
  const {ctx} = e.detail;
  if (!ctx.text.includes(' id="detail"')) ctx.swap = 'none';
  ctx.text = ctx.text.replace(/<script\b[^>]*><\/script>/gi, '');
});

function settle() {
  document.dispatchEvent(new CustomEvent('knm:rows'));
  if (detail) htmx.trigger(detail, 'node-changed');
  const info = document.getElementById('pager-info');
  if (!info) return;
  const page = Number(info.dataset.page), pages = Number(info.dataset.pages);
  document.getElementById('prev').hidden = page <= 1;
  document.getElementById('next').hidden = page >= pages;
}

// ---- order ---------------------------------------------------------------------------------------------------------

const rows = document.getElementById('rows');
let pending = null, hovering = false;

// order is the ids of the rows as the server has them, which the page may not show yet.
export const order = () => pending ?? [...rows.children].map(row => row.id);

// forgetOrder: rows that came as a whole stand in their order; one that waited is of rows that were.
function forgetOrder() {
  if (!pending) return;
  pending = null;
  offer();
}

// busy: nothing moves under a pointer, a selection in the making, an open menu or an edit.
function busy() {
  const on = document.activeElement;
  return hovering || document.documentElement.hasAttribute('data-ui-drag') ||
    document.querySelector('details.menu[open], dialog[open]') !== null ||
    (on !== null && (rows.contains(on) || on.matches('input[type=text], textarea, select')));
}

// movers are the rows to be moved: those outside the longest run that already stands in the wanted order.
function movers(ids) {
  const wanted = ids.map(id => document.getElementById(id)).filter(row => row?.parentNode === rows);
  const place = new Map([...rows.children].map((row, i) => [row, i]));
  const best = [], from = new Array(wanted.length);
  wanted.forEach((row, i) => {
    let lo = 0, hi = best.length;
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if (place.get(wanted[best[mid]]) < place.get(row)) lo = mid + 1;
      else hi = mid;
    }
    from[i] = lo ? best[lo - 1] : -1;
    best[lo] = i;
  });
  const still = new Set();
  for (let i = best.at(-1) ?? -1; i >= 0; i = from[i]) still.add(wanted[i]);
  return {wanted, moved: wanted.filter(row => !still.has(row))};
}

function move(row, before) {
  if (rows.moveBefore && row.isConnected) rows.moveBefore(row, before);
  else rows.insertBefore(row, before);
}

function apply() {
  if (!pending) return;
  const {wanted, moved} = movers(pending);
  const moving = new Set(moved);
  let before = null;
  for (let i = wanted.length - 1; i >= 0; i--) {
    if (moving.has(wanted[i])) move(wanted[i], before);
    before = wanted[i];
  }
  pending = null;
  offer();
}

function offer() {
  const box = document.getElementById('moved');
  const moved = pending ? movers(pending).moved : [];
  if (moved.length === 0) pending = null;
  // Headers of groups are not what the words count; where nothing else moves, there is still something to apply.
  const n = moved.length && Math.max(1, moved.filter(row => row.dataset.ref).length);
  if (!box) return;
  box.hidden = n === 0;
  if (n) document.getElementById('apply').textContent = count('moved', n);
}

function ordered(data) {
  try {
    pending = JSON.parse(data);
  } catch (err) {
    console.error('order', err);
    return;
  }
  if (busy()) offer();
  else apply();
  document.dispatchEvent(new CustomEvent('knm:rows')); // a node may have come under another header
}

const idle = () => { if (pending && !busy()) apply(); };

// ---- marks ---------------------------------------------------------------------------------------------------------

const marks = new Map();

function mark(el) {
  clearTimeout(marks.get(el));
  el.setAttribute('data-ui-hot', '');
  marks.set(el, setTimeout(() => {
    el.removeAttribute('data-ui-hot');
    marks.delete(el);
  }, 2000));
}

// watch marks the cell in which anything changed, and rows that are new. The ticking text of times is our own doing.
function watch(body) {
  const known = new Set([...body.children].map(row => row.id));
  new MutationObserver(records => {
    for (const r of records) {
      if (r.target === body) {
        for (const row of r.addedNodes) {
          if (row.nodeType === Node.ELEMENT_NODE && row.id && !known.has(row.id)) {
            known.add(row.id);
            mark(row);
          }
        }
        for (const row of r.removedNodes) if (!row.isConnected) known.delete(row.id);
        continue;
      }
      const el = r.target.nodeType === Node.ELEMENT_NODE ? r.target : r.target.parentElement;
      if (!el || (r.type !== 'attributes' && el.closest('time'))) continue;
      const cell = el.closest('td, th');
      if (cell && !cell.matches('[data-keep]')) mark(cell);
    }
  }).observe(body, {subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ['class', 'datetime']});
}

// ---- wiring --------------------------------------------------------------------------------------------------------

for (const el of document.querySelectorAll('[data-live]')) {
  indicate('connecting');
  follow(el, say);
}

if (rows) {
  watch(rows);
  const table = rows.closest('table');
  table.addEventListener('pointerenter', e => { hovering = e.pointerType === 'mouse'; });
  table.addEventListener('pointerleave', () => { hovering = false; idle(); });
  document.addEventListener('focusout', () => queueMicrotask(idle));
  document.addEventListener('toggle', idle, true);
  document.addEventListener('pointerup', () => queueMicrotask(idle));
  document.addEventListener('order', e => ordered(e.detail.data));
  document.getElementById('apply')?.addEventListener('click', apply);
}
const items = document.getElementById('items');
if (items) watch(items);

// Pods are read again on demand; without a script the button is a link.
document.getElementById('pods-again')?.addEventListener('click', e => {
  e.preventDefault();
  const pods = document.getElementById('pods');
  pods.setAttribute('aria-busy', 'true');
  htmx.trigger(pods, 'pods-again');
});
document.addEventListener('htmx:after:swap', e => {
  if (e.target.id === 'pods') e.target.removeAttribute('aria-busy');
});
