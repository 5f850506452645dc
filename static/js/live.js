// What htmx's stream lacks. It opens one connection and puts in what comes; when to open the next one is decided here:
// with full jitter, as late as the server asks, where the last one ended, never in a hidden tab, and not at all after a
// refusal, which offers a way to sign in. Beside that: the indicator, the order of rows, and the marks on what has just
// changed.
import {t, count, clock} from "./text.js";

// The server says something every 20 s. Tests are in more of a hurry: data-silence, in milliseconds.
const silence = el => Number(el.dataset.silence) || 45_000;

const first = 500, most = 30_000; // the wait is anything from nothing to first, twice that, and so on up to most
const longest = 300; // a server that asks for more seconds than these is not believed

// The stream of a session that another tab has replaced ends before that tab has the cookie of the new one: a refusal is
// no more than early then. That tab's answer may be on its way for so long, in milliseconds.
const renewals = [250, 500, 1000, 2000, 4000];

// backoff is how long to wait before an attempt, in milliseconds.
export const backoff = (attempt, random = Math.random) => random() * Math.min(first * 2 ** Math.min(attempt, 16), most);

// follow guards one streaming element; say is told how it goes. Replaced tells that its session has just been replaced.
export function follow(el, say = () => {}, replaced = false) {
  let conn = null, cursor = '', attempt = 0, waiting = 0, resting = false, over = false;
  let seen = Date.now(), changed = Date.now();
  let asked = null; // milliseconds after which the server wants us back; null: it did not say
  let quiet = false; // the coming reconnect is part of how it works, or was said already
  let renew = replaced ? [...renewals] : []; // waits before a refusal counts

  const connect = () => {
    waiting = 0;
    if (over || !el.isConnected) return;
    if (!document.hidden) {
      htmx.trigger(el, 'live-retry');
      return;
    }
    resting = true; // a hidden tab needs no stream; it asks again when somebody looks
  };
  const again = wait => {
    if (over || waiting || resting) return;
    if (!quiet) say('reconnecting', changed);
    waiting = setTimeout(connect, wait);
  };
  const end = why => {
    over = true;
    clearTimeout(waiting);
    clearInterval(watchdog);
    document.removeEventListener('visibilitychange', looked);
    conn?.reader?.cancel();
    say(why, changed);
  };
  const looked = () => {
    if (!el.isConnected) {
      document.removeEventListener('visibilitychange', looked);
    } else if (document.hidden) {
      if (conn) {
        quiet = true;
        asked = 0;
        conn.reader?.cancel();
      }
    } else if (resting) {
      resting = false;
      connect();
    }
  };
  const mine = handler => e => { if (e.target === el) handler(e.detail ?? {}); };

  el.addEventListener('htmx:config:request', mine(({ctx}) => {
    if (cursor) ctx.request.headers['Last-Event-ID'] = cursor;
  }));
  el.addEventListener('htmx:response:error', mine(({ctx}) => {
    const {status, headers} = ctx.response;
    if (status === 401 && renew.length) {
      again(renew.shift());
      return;
    }
    if (status === 401 || status === 403) {
      end(status === 401 ? 'signedout' : 'forbidden');
      return;
    }
    // Everybody who is refused at once is told the same second: what is added keeps them apart.
    const after = Math.min(Number(headers.get('Retry-After')) || 0, longest);
    again(after * 1000 + backoff(attempt++));
  }));
  el.addEventListener('htmx:error', mine(() => again(backoff(attempt++))));
  el.addEventListener('htmx:sse:before:connection', mine(({connection}) => {
    connection.config.reconnectMaxAttempts = 0;
    if (document.hidden) connection.cancelled = resting = true; // opened in the background
  }));
  el.addEventListener('htmx:sse:after:connection', mine(({connection}) => {
    conn = connection;
    asked = null;
    quiet = false;
    renew = [];
    seen = Date.now();
    say('live', changed);
  }));
  el.addEventListener('htmx:sse:after:message', mine(({connection, message}) => {
    seen = Date.now();
    attempt = 0;
    cursor = connection.lastEventId;
    if (!message.event) {
      if (message.data.startsWith('<hx-partial hx-target="#rows" hx-swap="innerMorph"')) forgetOrder();
      changed = seen;
      say('changed', changed);
    }
  }));
  el.addEventListener('htmx:sse:close', mine(({connection, reason}) => {
    if (connection !== conn || (reason !== 'ended' && !renew.length)) return; // another one was put in, or all is said
    conn = null;
    again(asked ?? backoff(attempt++));
  }));
  el.addEventListener('restart', mine(() => {
    asked = conn?.config.reconnectDelay ?? null; // the message carried it, another one for each of us
  }));
  el.addEventListener('poll', mine(({data}) => {
    asked = Number(data) || 2000;
    quiet = true;
    renew = [1000]; // the session may be replaced between two visits, and nobody is told then
    say('polling', changed);
  }));
  el.addEventListener('bye', mine(({data}) => {
    if (data === 'replaced') { // by the same person, in this browser: the stream goes on with the new session
      renew = [...renewals];
      asked = renew[0];
      quiet = true;
      return;
    }
    end(data === 'cluster-removed' ? 'ended' : 'signedout');
  }));
  el.addEventListener('done', mine(() => end('ended')));
  el.addEventListener('reload', mine(() => say('newbuild', changed)));
  document.addEventListener('visibilitychange', looked);

  // A connection that is silent for too long is dead, whatever TCP thinks of it.
  const watchdog = setInterval(() => {
    if (!el.isConnected) {
      clearInterval(watchdog);
      return;
    }
    if (conn?.reader && Date.now() - seen > silence(el)) {
      seen = Date.now(); // one chance per silence
      quiet = true;
      say('stale', changed);
      conn.reader.cancel();
    }
  }, 1000);
}

// ---- the indicator -------------------------------------------------------------------------------------------------

const light = document.getElementById('live-state');

function indicate(state, changed) {
  if (!light) return;
  const text = {
    connecting: () => t('connecting'),
    live: () => t('live'),
    polling: () => t('live'),
    reconnecting: () => t('reconnecting', {time: clock(changed)}),
    stale: () => t('stale', {time: clock(changed)}),
    signedout: () => t('stale', {time: clock(changed)}),
    forbidden: () => t('stale', {time: clock(changed)}),
    ended: () => t('ended'),
  }[state]?.();
  if (!text) return;
  light.dataset.uiState = state === 'polling' ? 'live' : state;
  light.title = state === 'polling' ? t('polling') : '';
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
