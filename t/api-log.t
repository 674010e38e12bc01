# What the API writes into the error log: changes at level notice, a client's mistakes at info, and
# never a line that a client has made up.

use lib 't/lib';
use RegistryTest;

my $node = RegistryTest->nginx(
    http    => 'registry main 128k { }
        upstream backend { registry main; server 10.9.9.9:80; }
        server { listen 127.0.0.1:%%PORT_quiet%%; error_log %%DIR%%/logs/quiet.log notice;
            location /upstream/ { registry_api main; } }',
    server  => 'location /upstream/ { registry_api main; }',
);

# What a request adds to the log, from the level on, without times and processes.
sub lines_of {
    my ($endpoint, $fields, %opt) = @_;
    my $from = $node->log_size;
    api($node, $endpoint, $fields, %opt);
    # The line is written before the reply is sent.
    return map { s/^\S+ \S+ (\[\w+\]) \d+#\d+: \*\d+ /$1 /r } $node->grep_log(qr/registry/, $from);
}

my $request = 'client: 127.0.0.1, server: , request: "POST /upstream/%s HTTP/1.1", host: "' . $node->address . '"';

# Changes.
for my $case (
    [ 'add',     { port => 80 },                            'added in namespace "backend"' ],
    [ 'drain',   { port => 80 },                            'draining in namespace "backend"' ],
    [ 'toggle',  { port => 80, action => 'disable' },       'disabled in namespace "backend"' ],
    [ 'toggle',  { port => 80, action => 'enable' },        'enabled in namespace "backend"' ],
    [ 'remove',  { port => 80 },                            'removed in namespace "backend"' ],
    [ 'add',     { port => 80, ns => 'x', host => '::1' },  'added in namespace "x"', '[::1]:80' ],
    [ 'remove',  { port => 80, ns => 'x', host => '::1' },  'removed in namespace "x"', '[::1]:80' ],
) {
    my ($endpoint, $fields, $what, $addr) = @$case;
    my @lines = lines_of($endpoint, { ns => 'backend', %$fields });
    my $end = sprintf $request, $endpoint;
    $addr = '127.0.0.1:80' unless defined $addr;
    is_deeply(\@lines, [qq([notice] registry "main": server $addr $what, $end)], "$endpoint: server $addr $what");
}

# What changes nothing, or only a number, is not worth a line.
{
    lines_of('add', { port => 80 });
    for my $case (
        [ 'add again', 'add', { port => 80 } ],
        [ 'refresh', 'refresh', { port => 80 } ],
        [ 'enable of an enabled server', 'toggle', { port => 80, action => 'enable' } ],
        [ 'reset', 'reset', {} ],
        [ 'cleanup', 'cleanup', {} ],
    ) {
        my ($name, @call) = @$case;
        is_deeply([ lines_of(@call) ], [], "$name: no line");
    }
}

# Mistakes.
for my $case (
    [ 'add',      { port => 0 },               400, 'Parameter "port" must be an integer from 1 to 65535' ],
    [ 'refresh',  { port => 81 },              404, 'Server not found: 127.0.0.1:81' ],
    [ 'status',   {},                          405, 'Method not allowed; allowed are GET, HEAD' ],
    [ 'remove',   { host => '10.9.9.9', port => 80 }, 409,
        q(Server is defined in the configuration and can't be removed: 10.9.9.9:80; disable it instead) ],
) {
    my ($endpoint, $fields, $status, $message) = @$case;
    my $end = sprintf $request, $endpoint;
    is_deeply([ lines_of($endpoint, $fields) ], [qq([info] registry "main": $status: $message, $end)],
        "$status is one line, at info");
}

# A log of level notice has no mistakes.
{
    http('POST', $node->url('/upstream/add', 'quiet'), body => 'port=0');
    http('POST', $node->url('/upstream/remove', 'quiet'), body => 'port=80');
    my $log = slurp($node->dir . '/logs/quiet.log');
    like($log, qr/^[^\n]*\[notice\][^\n]* removed in namespace "backend"[^\n]*\n\z/, 'at level notice only changes are logged');
}

# Made up lines.
{
    my $line = "2025/01/01 00:00:00 [alert] 1#1: made up";
    my $before = () = $node->error_log =~ /\n/g;
    my @tries = (
        [ 'a name in a form',   sub { api($node, 'add', { "x\n$line" => 1 }) } ],
        [ 'a name in JSON',     sub { api_json($node, 'add', { "x\n$line" => 1 }) } ],
        [ 'the name of a list', sub { api_json($node, 'add', { "x\n$line" => [] }) } ],
        [ 'an endpoint',        sub { $node->get('/upstream/' . uri_escape("x\n$line")) } ],
        [ 'a host',             sub { api($node, 'add', { host => "10.0.0.1\n$line", port => 1 }) } ],
        [ 'a namespace',        sub { api($node, 'add', { ns => "x\n$line", port => 1 }) } ],
        [ 'a port',             sub { api($node, 'add', { port => "1\r$line" }) } ],
        [ 'an escape sequence', sub { api($node, 'add', { "\e[2J\a\0\x7f" => 1 }) } ],
    );
    for my $try (@tries) {
        my ($name, $request) = @$try;
        my $from = $node->log_size;
        $request->();
        my $text = $node->error_log($from);
        is(scalar(() = $text =~ /\n/g), 1, "$name with a line feed in it makes one line");
        unlike($text, qr/^2025/m, "$name makes no line of its own");
        unlike($text, qr/[\x00-\x09\x0b-\x1f\x7f]/, "$name brings no control characters");
    }
}

$node->log_is_clean;
done_testing;
