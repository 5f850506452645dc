// A batch is started by a form whose answer is its progress. Here is what surrounds that: a second batch takes the
// panel over, an answer that breaks off is followed by its address, and cancelling does not leave the page.
import {t, toast} from "./text.js";
import {follow} from "./live.js";

const panel = document.getElementById('batch-panel');
let current = null, finished = false, replaced = false, address = '';

const key = () => [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, '0')).join('');
const mine = handler => e => { if (e.target.id === 'batch') handler(e); };

// Rows of a batch are named by their place in it, so two streams must never feed one panel.
document.addEventListener('htmx:before:request', mine(e => {
  // The stream's extension takes the answer over unseen; this is the one place where its header can be read.
  e.detail.ctx.fetch = async (...request) => {
    const answer = await fetch(...request);
    address = answer.headers.get('Location') ?? '';
    return answer;
  };
  finished = true;
  current?.reader?.cancel();
  current = null;
  document.getElementById('follow')?.remove();
}));

document.addEventListener('htmx:sse:after:connection', mine(e => {
  current = e.detail.connection;
  finished = replaced = false;
  panel.replaceChildren(); // what an earlier batch left
  const form = e.target;
  // The batch exists now: the next one needs another key. Until here, sending again finds the same batch.
  form.elements.idempotency_key.value = key();
  form.elements.reason.value = '';
  document.dispatchEvent(new CustomEvent('knm:sent'));
}));

document.addEventListener('done', mine(() => { finished = true; }));
document.addEventListener('bye', mine(({detail}) => { replaced = detail.data === 'replaced'; }));
document.addEventListener('htmx:sse:close', mine(() => {
  if (finished) return;
  finished = true;
  resume();
}));

// alarm says what must be read, in the place of the panel.
function alarm(text, label, href) {
  const p = document.createElement('p');
  p.className = 'panel problem';
  p.setAttribute('role', 'alert');
  p.textContent = text + ' ';
  if (href) {
    const link = document.createElement('a');
    link.textContent = label;
    link.href = href;
    p.append(link);
  }
  panel.replaceChildren(p);
}

// resume goes on where the answer broke off. The nonce is this page's own. An answer that broke off before its first
// message has left no panel to go on in, but its header has said where the batch is.
function resume() {
  const url = panel.querySelector('[data-events]')?.dataset.events;
  if (!url) {
    alarm(t('brokenoff'), t('open'), address.replace(/^\/api\/v1/, ''));
    return;
  }
  const el = document.createElement('div');
  el.id = 'follow';
  el.setAttribute('hx-sse:connect', url);
  el.setAttribute('hx-sse:close', 'done');
  el.setAttribute('hx-trigger', 'load, live-retry');
  el.setAttribute('hx-swap', 'none');
  el.setAttribute('hx-nonce', document.querySelector('script[nonce]').nonce);
  document.body.append(el);
  follow(el, undefined, replaced);
  htmx.process(el);
}

document.addEventListener('htmx:error', mine(e => {
  if (e.detail.ctx?.response) return; // an answer came; what failed is not the sending
  alarm(t('failed'));
}));

document.addEventListener('submit', async e => {
  const form = e.target.closest('form[data-quiet]');
  if (!form) return;
  e.preventDefault();
  const button = e.submitter ?? form.querySelector('button');
  const fields = new FormData(form, e.submitter);
  const words = button.textContent;
  button.disabled = true;
  try {
    const answer = await fetch(form.action, {method: 'POST', headers: {Accept: 'application/json'}, body: new URLSearchParams(fields)});
    if (answer.ok) {
      // What comes of it comes with the stream, and shows other buttons; this one may be wanted again.
      button.textContent = t('sent');
      setTimeout(() => { button.textContent = words; button.disabled = false; }, 3000);
      return;
    }
    const problem = await answer.json();
    toast(problem.detail ?? problem.title);
  } catch (err) {
    console.error('steering', err);
    toast(t('failed'));
  }
  button.disabled = false;
});

document.addEventListener('click', e => {
  const button = e.target.closest('[data-dismiss]');
  if (!button) return;
  button.closest('.panel').remove();
  // The batch goes on; only its progress is no longer shown here.
  finished = true;
  current?.reader?.cancel();
  document.getElementById('follow')?.remove();
});

// ---- pods of a node ------------------------------------------------------------------------------------------------

// The pods are fetched when somebody unfolds them, and again, at most every second, while they are open and their row
// changes. The element they land in is left alone by changes of the row.
const wanted = new WeakMap(); // details → {busy, version, at}

async function pods(details) {
  const row = details.closest('tr'), base = details.closest('[data-pods]')?.dataset.pods;
  const box = document.getElementById(`pods-${details.dataset.podsOf}`);
  if (!row || !base || !box) return;
  const state = wanted.get(details) ?? {busy: false, version: '', at: 0};
  wanted.set(details, state);
  if (state.busy || state.version === row.dataset.v) return;
  const wait = state.at + 1000 - Date.now();
  state.busy = true;
  if (wait > 0) await new Promise(done => setTimeout(done, wait));
  state.version = row.dataset.v;
  state.at = Date.now();
  try {
    await htmx.ajax('GET', `${base}${details.dataset.podsOf}/pods`, {target: box});
  } catch (err) {
    console.error('pods', err);
  }
  state.busy = false;
  if (details.open && details.isConnected) pods(details); // it may have changed meanwhile
}

document.addEventListener('toggle', e => {
  if (e.target.matches?.('details[data-pods-of]') && e.target.open) pods(e.target);
}, true);

// ---- what is happening now -----------------------------------------------------------------------------------------

const most = 8;

// The summary is made of the rows, so that it says what they say.
function now() {
  const list = document.querySelector('#batch-now ul');
  if (!list) return;
  const running = [...document.querySelectorAll('#items tr[data-state=running]')];
  const held = row => row.querySelectorAll('.c-why > .pods > li').length;
  running.sort((a, b) => held(b) - held(a));
  const lines = running.slice(0, most).map(row => {
    const li = document.createElement('li'), link = document.createElement('a'), words = document.createElement('span');
    link.href = `#${row.id}`;
    link.textContent = row.querySelector('.c-name a').textContent;
    words.textContent = row.querySelector('.sum > span')?.textContent ?? row.querySelector('.c-state').textContent;
    li.append(link, ' ', words);
    return li;
  });
  if (running.length > most) {
    const li = document.createElement('li');
    li.className = 'quiet';
    li.textContent = `+${running.length - most}`;
    lines.push(li);
  }
  list.replaceChildren(...lines);
}

document.addEventListener('htmx:sse:after:message', () => {
  if (!document.getElementById('items')) return;
  now();
  for (const details of document.querySelectorAll('details[data-pods-of][open]')) pods(details);
});

// A link to this batch, for others. What copies comes after this.
document.addEventListener('click', e => {
  const button = e.target.closest('[data-copy-link]');
  if (button) button.dataset.copy = new URL(button.dataset.copyLink, location.href).href;
}, true);
