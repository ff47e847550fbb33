//! Evaluates a script, with limits of time, memory and depth. It knows nothing of this process but what it is given,
//! and of this machine the address that it sends from.

use std::cell::Cell;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

use rquickjs::{Context, Ctx, Error, Function, Runtime, Value};
use tokio::time::Instant;

use super::{LIMIT, PacError};

/// How much a script may hold, in bytes.
const MEMORY: usize = 32 * 1024 * 1024;

/// How deep it may call itself, in bytes of the thread's stack.
const STACK: usize = 512 * 1024;

/// How large the stack of a thread must be that evaluates.
pub const THREAD_STACK: usize = 4 * STACK;

/// The functions of PAC.
const FUNCTIONS: &str = include_str!("functions.js");

/// Finds an IPv4 address of a name.
pub(super) type Resolve = Box<dyn Fn(&str) -> Option<Ipv4Addr>>;

/// A script that can be asked. It keeps to its thread.
pub struct Engine {
    context: Context,
    deadline: Rc<Cell<Instant>>,
    _runtime: Runtime,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Reads a script, which may look up names by `resolve`.
    ///
    /// # Errors
    /// Where it is no script, throws, takes too long, or lacks its function.
    pub fn new(script: &str, resolve: Resolve) -> Result<Self, PacError> {
        let broken = |error: Error| PacError::Script(error.to_string());
        let runtime = Runtime::new().map_err(broken)?;
        runtime.set_memory_limit(MEMORY);
        runtime.set_max_stack_size(STACK);
        let deadline = Rc::new(Cell::new(Instant::now() + LIMIT));
        let until = deadline.clone();
        runtime.set_interrupt_handler(Some(Box::new(move || Instant::now() >= until.get())));
        let context = Context::full(&runtime).map_err(broken)?;
        let engine = Self {
            context,
            deadline,
            _runtime: runtime,
        };
        engine.context.with(|ctx| {
            let given = || {
                let globals = ctx.globals();
                let lookup = move |host: String| resolve(&host).map(|ip| ip.to_string());
                // The functions take it away again.
                globals.set("lookup", Function::new(ctx.clone(), lookup)?)?;
                let own = Function::new(ctx.clone(), || own_address().to_string());
                globals.set("myIpAddress", own?)?;
                ctx.eval::<(), _>(FUNCTIONS)?;
                ctx.eval::<(), _>(script)
            };
            given().map_err(|error| engine.told(&ctx, &error, LIMIT))?;
            function(&ctx).map(drop)
        })?;
        Ok(engine)
    }

    /// What the script says of a URL, within so much time.
    ///
    /// # Errors
    /// Where it throws, takes too long or too much, or says no text.
    pub fn find(&self, url: &str, host: &str, limit: Duration) -> Result<String, PacError> {
        self.deadline.set(Instant::now() + limit);
        self.context.with(|ctx| {
            let find = function(&ctx)?;
            let said: Value<'_> = find
                .call((url, host))
                .map_err(|error| self.told(&ctx, &error, limit))?;
            let Some(text) = said.as_string() else {
                return Err(PacError::Answer(format!("with {}", said.type_name())));
            };
            text.to_string()
                .map_err(|_| PacError::Answer("what is no text".to_owned()))
        })
    }

    fn told(&self, ctx: &Ctx<'_>, error: &Error, limit: Duration) -> PacError {
        if Instant::now() >= self.deadline.get() {
            return PacError::Slow(limit);
        }
        if !error.is_exception() {
            return PacError::Script(error.to_string());
        }
        let thrown = ctx.catch();
        let Some(exception) = thrown.as_exception() else {
            let text = thrown.as_string().and_then(|text| text.to_string().ok());
            return PacError::Script(clipped(&text.unwrap_or_else(|| "it throws".to_owned())));
        };
        let message = exception.message().unwrap_or_default();
        if message == "out of memory" {
            return PacError::Memory(MEMORY);
        }
        // `    at name (eval_script:3:14)`: of that the place.
        let place = exception.stack().and_then(|stack| {
            let line = stack.lines().next()?;
            let (_, place) = line.rsplit_once("eval_script:")?;
            Some(format!(" at {}", place.trim_end_matches(')')))
        });
        PacError::Script(clipped(&message) + &place.unwrap_or_default())
    }
}

fn function<'js>(ctx: &Ctx<'js>) -> Result<Function<'js>, PacError> {
    let found = ctx.globals().get::<_, Function<'_>>("FindProxyForURL");
    found.map_err(|_| PacError::NoFunction)
}

/// A text of a stranger's, legible and of some length.
fn clipped(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect()
}

/// The address that this host goes out by: asked of the kernel, which sends nothing for it.
fn own_address() -> IpAddr {
    // Of the documentation's network (RFC 5737): only the default route leads there.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let asked = socket.and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    asked.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: &str) -> Option<Ipv4Addr> {
        match name {
            "in.example" => Some(Ipv4Addr::new(10, 1, 2, 3)),
            "out.example" => Some(Ipv4Addr::new(192, 0, 2, 3)),
            _ => None,
        }
    }

    fn engine(script: &str) -> Result<Engine, PacError> {
        Engine::new(script, Box::new(resolve))
    }

    /// What an expression is, with a clock that stands at Saturday, 21 November 2026, 14:30:15.
    fn value(expression: &str) -> String {
        let script = format!(
            "globalThis.Date = class {{ getDay() {{ return 6 }} getUTCDay() {{ return 0 }} \
             getFullYear() {{ return 2026 }} getMonth() {{ return 10 }} getDate() {{ return 21 }} \
             getHours() {{ return 14 }} getUTCHours() {{ return 3 }} getUTCMinutes() {{ return 30 }} getUTCSeconds() {{ return 15 }} getMinutes() {{ return 30 }} getSeconds() {{ return 15 }} }};\n\
             function FindProxyForURL(url, host) {{ return String({expression}) }}"
        );
        let found = engine(&script).and_then(|engine| engine.find("http://a/", "a", LIMIT));
        found.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    #[test]
    fn the_functions_say_what_they_say_in_a_browser() {
        for (expression, expected) in [
            ("isPlainHostName('www')", "true"),
            ("isPlainHostName('www.example')", "false"),
            ("dnsDomainIs('WWW.corp.example', '.corp.example')", "true"),
            ("dnsDomainIs('corp.example', '.corp.example')", "false"),
            ("localHostOrDomainIs('www', 'www.corp.example')", "true"),
            (
                "localHostOrDomainIs('www.corp.example', 'www.corp.example')",
                "true",
            ),
            (
                "localHostOrDomainIs('www.other.example', 'www.corp.example')",
                "false",
            ),
            ("dnsDomainLevels('www.corp.example')", "2"),
            ("isResolvable('in.example')", "true"),
            ("isResolvable('no.example')", "false"),
            ("dnsResolve('in.example')", "10.1.2.3"),
            ("dnsResolve('no.example')", "null"),
            ("isInNet('in.example', '10.0.0.0', '255.0.0.0')", "true"),
            ("isInNet('out.example', '10.0.0.0', '255.0.0.0')", "false"),
            ("isInNet('no.example', '0.0.0.0', '0.0.0.0')", "false"),
            (
                "isInNet('198.51.100.7', '198.51.100.0', '255.255.255.0')",
                "true",
            ),
            ("isInNet('224.0.0.1', '240.0.0.0', '240.0.0.0')", "false"),
            ("isInNet('198.51.100.777', '0.0.0.0', '0.0.0.0')", "false"),
            ("convert_addr('104.16.41.2')", "1745889538"),
            ("shExpMatch('a.b.example', '*.example')", "true"),
            ("shExpMatch('a.b.example', '*.exampl')", "false"),
            ("shExpMatch('abc', 'a?c')", "true"),
            ("shExpMatch('a.c', 'a\\\\.c')", "false"),
            ("shExpMatch('', '*')", "true"),
            ("shExpMatch('abcabd', '*ab?')", "true"),
            ("shExpMatch('a'.repeat(5000), '*a*a*a*a*b')", "false"),
            ("/^[0-9.]+$/.test(myIpAddress())", "true"),
            ("weekdayRange('SAT')", "true"),
            ("weekdayRange('MON', 'FRI')", "false"),
            ("weekdayRange('FRI', 'MON')", "true"),
            ("weekdayRange('SUN', 'GMT')", "true"),
            ("weekdayRange('SOMEDAY')", "false"),
            ("dateRange(21)", "true"),
            ("dateRange(1, 20)", "false"),
            ("dateRange('NOV')", "true"),
            ("dateRange('OCT', 'FEB')", "true"),
            ("dateRange('FEB', 'OCT')", "false"),
            ("dateRange(2026)", "true"),
            ("dateRange(2027, 2030)", "false"),
            ("dateRange(21, 'NOV')", "true"),
            ("dateRange(24, 'DEC')", "false"),
            ("dateRange(1, 'NOV', 30, 'NOV')", "true"),
            ("dateRange(24, 'DEC', 2, 'JAN')", "false"),
            ("dateRange('JUN', 2026, 'JAN', 2027)", "true"),
            ("dateRange(22, 'NOV', 2026, 1, 'JAN', 2027)", "false"),
            ("dateRange()", "false"),
            ("dateRange('x')", "false"),
            ("timeRange(14)", "true"),
            ("timeRange(8, 13)", "false"),
            ("timeRange(22, 6)", "false"),
            ("timeRange(22, 6, 'GMT')", "true"),
            ("timeRange(14, 30, 14, 30)", "true"),
            ("timeRange(14, 31, 23, 0)", "false"),
            ("timeRange(14, 30, 15, 14, 30, 16)", "true"),
            ("timeRange(1, 2, 3)", "false"),
            ("alert('x')", "undefined"),
        ] {
            assert_eq!(value(expression), expected, "{expression}");
        }
    }

    #[test]
    fn a_script_is_asked_again_and_again() {
        let engine = engine(
            "var count = 0;\nfunction FindProxyForURL(url, host) { count++; \
             return shExpMatch(host, '*.corp.example') ? 'DIRECT' : 'PROXY p' + count + ':8080 ' + url }",
        )
        .unwrap();
        let find = |host| engine.find("https://h/", host, LIMIT).unwrap();
        assert_eq!(find("a.corp.example"), "DIRECT");
        assert_eq!(find("b.example"), "PROXY p2:8080 https://h/");
    }

    #[test]
    fn a_script_that_cannot_answer_is_told_apart() {
        for (script, expected) in [
            (
                "function FindProxyForURL(url, host) {\n  return 'DIRECT'",
                "the script fails: ",
            ),
            ("var x = 1;", "the script has no function FindProxyForURL"),
            (
                "throw new Error('no\\nway');",
                "the script fails: no way at 1:",
            ),
            (
                "var FindProxyForURL = 'DIRECT';",
                "the script has no function FindProxyForURL",
            ),
        ] {
            let error = engine(script).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{script}: {error}");
        }
        for (body, expected) in [
            (
                "return nothing.there",
                "the script fails: nothing is not defined at 1:",
            ),
            ("throw 'text'", "the script fails: text"),
            ("throw {}", "the script fails: it throws"),
            ("return 1", "the script answered with int"),
            ("return null", "the script answered with null"),
            ("", "the script answered with undefined"),
        ] {
            let engine = engine(&format!("function FindProxyForURL(u, h) {{ {body} }}")).unwrap();
            let error = engine
                .find("http://a/", "a", LIMIT)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(expected), "{body}: {error}");
        }
    }

    #[test]
    fn a_hostile_script_ends_within_its_limits() {
        let limit = Duration::from_millis(300);
        for (body, expected) in [
            ("for (;;) {}", "the script gave no answer in 300ms"),
            (
                "for (;;) { try { for (;;) {} } catch (e) {} }",
                "the script gave no answer in 300ms",
            ),
            (
                "return String(/^(a+)+$/.test('a'.repeat(40) + 'b'))",
                "the script gave no answer in 300ms",
            ),
            (
                "return FindProxyForURL(u, h) + 1",
                "the script fails: Maximum call stack size exceeded",
            ),
            (
                "return 'x'.repeat(1e9)",
                "the script takes more memory than 32 MiB",
            ),
            (
                "var a = []; for (;;) { a.push('x'.repeat(1000000) + a.length) }",
                "the script takes more memory than 32 MiB",
            ),
        ] {
            let is_endless = expected.contains("no answer");
            let limit = if is_endless { limit } else { LIMIT };
            let engine = engine(&format!("function FindProxyForURL(u, h) {{ {body} }}")).unwrap();
            let begun = Instant::now();
            let error = engine
                .find("http://a/", "a", limit)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(expected), "{body}: {error}");
            assert!(begun.elapsed() < 2 * LIMIT, "{body}");
        }
        // It sees nothing of the machine.
        for name in [
            "require",
            "process",
            "std",
            "os",
            "fetch",
            "XMLHttpRequest",
            "setTimeout",
            "print",
        ] {
            assert_eq!(value(&format!("typeof {name}")), "undefined", "{name}");
        }
    }
}
