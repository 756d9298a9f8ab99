class SSEClient {
    private eventSource: EventSource | null = null;
    private sessionId: string;
    private token: string;
    private reconnectAttempts = 0;
    private maxReconnectAttempts = 5;
    private reconnectDelay = 1000;

    constructor(sessionId: string, token: string) {
        this.sessionId = sessionId;
        this.token = token;
    }

    connect(): void {
        if (this.eventSource) {
            this.eventSource.close();
        }

        // 注意：EventSource不支持自定义headers，需要通过查询参数传递token
        const url = `/agent_backend/api/sse/events/${this.sessionId}?token=${encodeURIComponent(this.token)}`;
        
        this.eventSource = new EventSource(url);

        this.eventSource.onopen = (event) => {
            console.log('SSE连接已建立');
            this.reconnectAttempts = 0;
            this.onConnectionOpen?.(event);
        };

        this.eventSource.onmessage = (event) => {
            try {
                const data = JSON.parse(event.data);
                this.handleEvent(data);
            } catch (error) {
                console.error('解析SSE消息失败:', error);
            }
        };

        this.eventSource.onerror = (event) => {
            console.error('SSE连接错误:', event);
            this.handleReconnect();
        };
    }

    private handleEvent(data: any): void {
        switch (data.type) {
            case 'tool_status':
                this.onToolStatusChange?.(data.data);
                break;
            case 'permission_request':
                this.onPermissionRequest?.(data.data);
                break;
            case 'tool_result':
                this.onToolResult?.(data.data);
                break;
            case 'permission_cleared':
                this.onPermissionCleared?.(data.data);
                break;
            case 'result_cleared':
                this.onResultCleared?.(data.data);
                break;
            case 'permission_response_result':
                this.onPermissionResponseResult?.(data.data);
                break;
            case 'heartbeat':
                this.onHeartbeat?.(data.timestamp);
                break;
            case 'error':
                this.onError?.(data.message);
                break;
            default:
                console.warn('未知的SSE事件类型:', data.type);
        }
    }

    private handleReconnect(): void {
        if (this.reconnectAttempts < this.maxReconnectAttempts) {
            this.reconnectAttempts++;
            const delay = this.reconnectDelay * Math.pow(2, this.reconnectAttempts - 1);
            
            console.log(`${delay}ms后尝试重连...`);
            setTimeout(() => {
                this.connect();
            }, delay);
        } else {
            console.error('达到最大重连次数，停止重连');
            this.onMaxReconnectAttemptsReached?.();
        }
    }

    async approvePermission(approved: boolean, reason: string = ''): Promise<boolean> {
        try {
            const response = await fetch(
                `/agent_backend/api/sse/permission-response/${this.sessionId}`,
                {
                    method: 'POST',
                    headers: {
                        'Content-Type': 'application/json',
                        'Authorization': `Bearer ${this.token}`
                    },
                    body: JSON.stringify({ approved, reason })
                }
            );

            const result = await response.json();
            return result.success;
        } catch (error) {
            console.error('提交权限响应失败:', error);
            return false;
        }
    }

    async checkHealth(): Promise<any> {
        try {
            const response = await fetch(
                `/agent_backend/api/sse/health/${this.sessionId}`,
                {
                    headers: {
                        'Authorization': `Bearer ${this.token}`
                    }
                }
            );
            return await response.json();
        } catch (error) {
            console.error('健康检查失败:', error);
            return null;
        }
    }

    disconnect(): void {
        if (this.eventSource) {
            this.eventSource.close();
            this.eventSource = null;
        }
    }

    // 事件回调
    onConnectionOpen?: (event: Event) => void;
    onToolStatusChange?: (status: any) => void;
    onPermissionRequest?: (request: any) => void;
    onToolResult?: (result: any) => void;
    onPermissionCleared?: (data: any) => void;
    onResultCleared?: (data: any) => void;
    onPermissionResponseResult?: (result: any) => void;
    onHeartbeat?: (timestamp: number) => void;
    onError?: (message: string) => void;
    onMaxReconnectAttemptsReached?: () => void;
}

export { SSEClient };
