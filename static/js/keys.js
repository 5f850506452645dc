// The keyboard. Keys do what a click would do, on the element that a click would hit.
const rows = document.getElementById('rows');
const help = document.getElementById('help');
let leader = 0;

const links = () => [...(rows?.querySelectorAll('tr a.open') ?? [])];
const bar = () => document.querySelector('form#batch');
const row = () => document.activeElement?.closest?.('#rows tr');

function step(by) {
  const all = links();
  if (!all.length) return;
  const at = all.indexOf(row()?.querySelector('a.open'));
  const to = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + by))];
  to.focus();
  to.scrollIntoView({block: 'nearest'});
}

function tick(shiftKey) {
  row()?.querySelector('.c-sel input')?.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true, shiftKey}));
}

function verb(name) {
  const form = bar();
  if (!form) return;
  if (!form.matches('[data-single], [data-ui-open]')) {
    if (!row()) return; // nothing is meant
    tick(false);
  }
  // The bar opens in a microtask, once the selection has been drawn.
  setTimeout(() => {
    const button = form.querySelector(`button[value=${name}]`);
    if (!button || button.hidden) return;
    if (button.hasAttribute('formaction')) button.click(); // only looks at what would happen
    else (name === 'cordon' ? form.elements.reason : button).focus();
  });
}

function escape(e) {
  const open = document.querySelector('details.menu[open]');
  if (open) {
    open.open = false;
    open.querySelector('summary').focus();
  } else if (e.target.matches('input, textarea, select')) {
    e.target.blur();
  } else {
    document.dispatchEvent(new CustomEvent('knm:clear'));
  }
}

const plain = {
  '/': () => document.getElementById('q')?.focus(),
  j: () => step(1),
  k: () => step(-1),
  x: () => tick(false),
  X: () => tick(true),
  a: () => { const all = document.getElementById('all'); if (all?.checkVisibility()) all.click(); },
  c: () => verb('cordon'),
  u: () => verb('uncordon'),
  d: () => verb('drain'),
  l: () => verb('labels'),
  t: () => verb('taints'),
  g: () => { leader = Date.now(); },
  '?': () => help?.showModal(),
};
const afterG = {
  n: () => location.assign('/nodes'),
  b: () => location.assign('/batches'),
};

document.addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing || help?.open) return;
  if (e.key === 'Escape') return escape(e);
  if (e.target.matches('input:not([type=checkbox]), textarea, select, [contenteditable]')) return;
  const led = Date.now() - leader < 1000;
  leader = 0;
  const act = (led && afterG[e.key]) || plain[e.key];
  if (!act) return;
  e.preventDefault();
  act();
});

// A menu closes when somebody looks elsewhere.
document.addEventListener('click', e => {
  for (const menu of document.querySelectorAll('details.menu[open]')) if (!menu.contains(e.target)) menu.open = false;
});
